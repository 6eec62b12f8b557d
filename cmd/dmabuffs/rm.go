package main

import (
	"errors"
	"io/fs"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func newRmCmd() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "rm PATH...",
		Short: "Remove buffers by name",
		Long: `Remove the name of each buffer. Who has it open or mapped keeps it; its memory goes
with the last of them. Paths that are not on a dmabuffs are refused.`,
		Args: usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			return forEach(args, func(path string) error {
				mnt, name, err := bufferOf(path)
				if err != nil {
					return err
				}
				target := mnt + "/buffers/" + name
				if err := unix.Unlink(target); err != nil && (!force || err != unix.ENOENT) {
					return &fs.PathError{Op: "remove", Path: target, Err: err}
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "say nothing of names that are not there")
	return cmd
}

// forEach does something with each argument, goes on after failures and returns all of them.
func forEach(args []string, do func(string) error) error {
	var errs []error
	for _, arg := range args {
		if err := do(arg); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) == 1 {
		return errs[0]
	}
	return errors.Join(errs...)
}
