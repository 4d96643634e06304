package main

import (
	"os/exec"
	"testing"
)

// The parts of the page that need no page are tested by node's own test runner.
func TestScripts(t *testing.T) {
	node, err := exec.LookPath("node")
	if err != nil {
		leaveOut(t, "the scripts of the inspector by themselves", "there is no node")
	}
	out, err := exec.CommandContext(t.Context(), node, "--test", "jstest/").CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
