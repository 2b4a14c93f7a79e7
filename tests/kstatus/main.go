// Prints what kstatus, the rules by which Helm, Flux and kubectl-like tools wait, makes of Kubernetes objects.
//
// Reads one object as JSON a line from standard input; prints for each one line: the verdict (Current, InProgress, Failed,
// Terminating, NotFound, Unknown), a tab, and the message in one line. Ends with code 1 at the first line that is no object.
package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

// The API server takes no object above 3 MiB of JSON.
const maxLine = 4 << 20

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run() error {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, maxLine)
	for n := 1; lines.Scan(); n++ {
		var object unstructured.Unstructured
		if err := object.UnmarshalJSON(lines.Bytes()); err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		result, err := status.Compute(&object)
		if err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		fmt.Printf("%s\t%s\n", result.Status, strings.Join(strings.Fields(result.Message), " "))
	}
	return lines.Err()
}
