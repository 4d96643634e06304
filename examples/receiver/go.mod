module github.com/opencommit/requestmirror/examples/receiver

go 1.22
