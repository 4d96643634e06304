module github.com/opencommit/requestmirror

go 1.20
