module github.com/opencommit/requestmirror/examples/checker

go 1.22
