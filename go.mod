module github.com/opencommit/requestmirror

// 1.20 on purpose: the compiler then refuses what Yaegi v0.16.1 cannot run
// (range over an integer, min, max, clear) and gives loop variables the meaning
// Yaegi gives them.
go 1.20
