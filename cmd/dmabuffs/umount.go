package main

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/dmabuffs/dmabuffs/fs"
)

func newUmountCmd() *cobra.Command {
	var lazy bool
	cmd := &cobra.Command{
		Use:   "umount MNT...",
		Short: "Unmount a dmabuffs",
		Long: `Unmount the dmabuffs at each MNT; its daemon ends. When somebody still uses it, the
error says who. A mount whose daemon is gone ("Transport endpoint is not connected") is
cleared. Nothing but a dmabuffs is ever unmounted.`,
		Example: `  dmabuffs umount /mnt/buf
  dmabuffs umount -l /mnt/buf    # take it away now; its users keep what they have open`,
		Args: usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			var all []error
			for _, dir := range args {
				all = append(all, unmount(dir, lazy))
			}
			return errors.Join(all...)
		},
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			var out []string
			mounts, _ := fs.Mounts()
			for _, m := range mounts {
				out = append(out, m.Dir)
			}
			return out, cobra.ShellCompDirectiveNoFileComp
		},
	}
	cmd.Flags().BoolVarP(&lazy, "lazy", "l", false, "detach now, clean up when nobody uses it any more")
	return cmd
}

func unmount(dir string, lazy bool) error {
	err := fs.Unmount(dir, lazy)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EBUSY):
		return hint(fmt.Errorf("umount: %w", err), "end what holds it, or detach it: dmabuffs umount -l %s", dir)
	case errors.Is(err, syscall.EPERM):
		return hint(fmt.Errorf("umount: %w", err), "only root and the user who mounted it may")
	}
	return fmt.Errorf("umount: %w", err)
}
