module github.com/opencommit/requestmirror/examples/replay

go 1.23 // from which on timers are those that testing/synctest knows
