package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

func newTraceCmd() *cobra.Command {
	var (
		f      follower
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "trace [MNT]",
		Short: "Print what processes do with buffers, as strace would",
		Long: `Print the events of a mount from now on as calls: who did what with which buffer. --buffer
and --process choose. What the kernel does without asking the daemon (loads, stores,
passthrough) is no event.`,
		Example: "  dmabuffs trace --buffer frame\n  dmabuffs trace --process my-compositor --event open,map",
		Args:    usageArgs(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.print(cmd, args, asJSON, event.call)
		},
	}
	f.flags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the events as they come: one JSON object each")
	return cmd
}

// call is one event as strace prints a call: who, what(on what, key=value).
func (e event) call() string {
	who := "-"
	if pid := e.Values["pid"]; pid != "" {
		who = pid
		if comm := e.Values["comm"]; comm != "" {
			who += " " + printable(comm)
		}
	}
	var args []string
	for _, k := range e.Keys {
		v := e.Values[k]
		switch k {
		case "pid", "comm":
		case "buffer":
			args = append([]string{fmt.Sprintf("%q", v)}, args...)
		default:
			args = append(args, k+"="+wordOf(v))
		}
	}
	return fmt.Sprintf("%s [%s] %s(%s)", e.Time.Local().Format("15:04:05.000000"), who, e.Name, strings.Join(args, ", "))
}
