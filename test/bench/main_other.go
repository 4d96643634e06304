//go:build !linux

package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "bench: runs on Linux only, as it reads the CPU time and memory of Traefik from the kernel")
	os.Exit(1)
}
