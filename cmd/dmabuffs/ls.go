package main

import (
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"
)

func newLsCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "ls [MNT]",
		Short:   "List the buffers of a mount",
		Long:    "List every buffer: its size in bytes, its exporter, whose domain its pages are in,\nits references, how many attachments and how many pending fences it has.",
		Example: "  dmabuffs ls\n  dmabuffs ls --json /mnt/dmabuffs | jq '.[] | select(.fences_pending > 0)'",
		Args:    usageArgs(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			mnt, err := mountOf(args)
			if err != nil {
				return err
			}
			names, err := readNames(filepath.Join(mnt, "buffers"))
			if err != nil {
				return err
			}
			list := make([]bufferInfo, 0, len(names))
			for _, name := range names {
				b, err := readBuffer(mnt, name)
				if gone(err) {
					continue
				}
				if err != nil {
					return err
				}
				list = append(list, b)
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), list)
			}
			rows := [][]string{{"NAME", "SIZE", "EXPORTER", "DOMAIN", "REFS", "ATTACHED", "PENDING"}}
			for _, b := range list {
				rows = append(rows, []string{
					printable(b.Name), formatSize(b.Size), b.Exporter, b.Domain,
					strconv.FormatInt(b.Refcount, 10), strconv.Itoa(b.Attachments), strconv.Itoa(b.Pending),
				})
			}
			return printTable(cmd.OutOrStdout(), rows)
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

// jsonFlag is every listing's --json.
func jsonFlag(cmd *cobra.Command, v *bool) {
	cmd.Flags().BoolVar(v, "json", false, "print JSON, for scripts")
}
