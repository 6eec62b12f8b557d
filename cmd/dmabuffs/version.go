package main

import (
	"fmt"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dmabuffs/dmabuffs/fs"
)

func newVersionCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version [MNT]",
		Short: "Print the version of this program, or of the daemon that serves MNT",
		Args:  usageArgs(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			text := fmt.Sprintf("dmabuffs %s (%s, %s/%s)", fs.BuildVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			if len(args) > 0 {
				mnt, err := mountOf(args)
				if err != nil {
					return err
				}
				if text, err = readText(filepath.Join(mnt, "version")); err != nil {
					return err
				}
			}
			text = strings.TrimSpace(text)
			if asJSON {
				return printJSON(cmd.OutOrStdout(), map[string]string{"version": text})
			}
			fmt.Fprintln(cmd.OutOrStdout(), text)
			return nil
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}
