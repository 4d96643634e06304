package policy

import (
	"bytes"
	"flag"
	"os"
	"testing"
)

var update = flag.Bool("update", false, "write the policy instead of comparing it")

const shipped = "../../../examples/kubernetes/policy/policy.yaml"

func TestTheShippedPolicyIsThatOfTheseSources(t *testing.T) {
	plugin, err := Read("../../..")
	if err != nil {
		t.Fatal(err)
	}
	want, err := Render(plugin)
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(shipped, want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(shipped)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("examples/kubernetes/policy/policy.yaml is not what the sources say; write it with: cd test/kubernetes && go test ./policy -update")
	}
}
