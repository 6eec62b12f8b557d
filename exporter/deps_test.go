package exporter

import (
	"os/exec"
	"strings"
	"testing"
)

// TestNoFUSE holds the line: the domain packages build and run where there is no FUSE.
func TestNoFUSE(t *testing.T) {
	const module = "github.com/dmabuffs/dmabuffs"
	allowed := map[string]string{"poll": "poll", "exporter": "poll exporter", "attach": "poll exporter attach"}
	for pkg, own := range allowed {
		out, err := exec.Command("go", "list", "-deps", module+"/"+pkg).CombinedOutput()
		if err != nil {
			t.Fatalf("go list: %v\n%s", err, out)
		}
		if !strings.Contains(string(out), module+"/"+pkg+"\n") {
			t.Fatalf("go list does not name %s itself:\n%s", pkg, out)
		}
		for dep := range strings.Lines(string(out)) {
			dep = strings.TrimSpace(dep)
			if strings.Contains(dep, "go-fuse") {
				t.Errorf("%s imports %s", pkg, dep)
			}
			if rel, ok := strings.CutPrefix(dep, module+"/"); ok && !strings.Contains(" "+own+" ", " "+rel+" ") {
				t.Errorf("%s imports %s", pkg, rel)
			}
		}
	}
}
