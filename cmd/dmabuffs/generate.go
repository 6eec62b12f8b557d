//go:build docs

package main

import (
	"bytes"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// Only make's own builds have this command: what it needs is not for the program.
func init() { generators = append(generators, newGenerateCmd) }

// shells that cobra can complete for, and the file each looks for.
var shells = map[string]string{"bash": "dmabuffs.bash", "zsh": "_dmabuffs", "fish": "dmabuffs.fish"}

func newGenerateCmd() *cobra.Command {
	return &cobra.Command{
		Use:    "generate man|completions DIR",
		Short:  "Write the man pages or the completion scripts",
		Hidden: true,
		Args:   usageArgs(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			root, dir := cmd.Root(), args[1]
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			if args[0] == "man" {
				root.DisableAutoGenTag = true
				return doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: "dmabuffs", Manual: "dmabuffs"}, dir)
			}
			for shell, file := range shells {
				var text bytes.Buffer
				completion := newCompletionCmd()
				completion.SetOut(&text)
				root.AddCommand(completion)
				if err := completion.RunE(completion, []string{shell}); err != nil {
					return err
				}
				root.RemoveCommand(completion)
				if err := os.WriteFile(filepath.Join(dir, file), text.Bytes(), 0o644); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
