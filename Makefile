# The commands that CI runs, under the names that people type.

GO        ?= go
PREFIX    ?= /usr/local
BINDIR    ?= $(PREFIX)/bin
MANDIR    ?= $(PREFIX)/share/man
SBINDIR   ?= /sbin
DESTDIR   ?=
UNITDIR   ?= $(PREFIX)/share/doc/dmabuffs/examples
VERSION   ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2

BIN     = bin/dmabuffs
LDFLAGS = -s -w -X github.com/dmabuffs/dmabuffs/fs.Version=$(VERSION)

.PHONY: all build binary setup install uninstall man completions test unit race mounted single lint fuzz soak bench conformance selftests programs demo clean help

all: build

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: binary man completions ## bin/dmabuffs, static, with man pages and completions

binary: ## bin/dmabuffs alone
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/dmabuffs

setup: ## install what building and testing need
	scripts/setup

man: ## packaging/man, from the commands themselves
	$(GO) run -tags docs ./cmd/dmabuffs generate man packaging/man

completions: ## packaging/completions, for bash, zsh and fish
	$(GO) run -tags docs ./cmd/dmabuffs generate completions packaging/completions

# Builds nothing: root often has no Go.
install: ## binary, mount helper, man pages, completions (PREFIX, DESTDIR)
	@test -x $(BIN) -a -e packaging/man/dmabuffs.1 -a -e packaging/completions/_dmabuffs || { echo 'make build first' >&2; exit 1; }
	install -d $(DESTDIR)$(BINDIR) $(DESTDIR)$(SBINDIR) $(DESTDIR)$(MANDIR)/man1 $(DESTDIR)$(MANDIR)/man8 $(DESTDIR)$(UNITDIR)
	install -m 0755 $(BIN) $(DESTDIR)$(BINDIR)/dmabuffs
	ln -sf $(BINDIR)/dmabuffs $(DESTDIR)$(SBINDIR)/mount.fuse.dmabuffs
	ln -sf $(BINDIR)/dmabuffs $(DESTDIR)$(SBINDIR)/mount.dmabuffs
	install -m 0644 packaging/man/*.1 $(DESTDIR)$(MANDIR)/man1/
	install -m 0644 packaging/mount.fuse.dmabuffs.8 $(DESTDIR)$(MANDIR)/man8/
	install -D -m 0644 packaging/completions/dmabuffs.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/dmabuffs
	install -D -m 0644 packaging/completions/_dmabuffs $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_dmabuffs
	install -D -m 0644 packaging/completions/dmabuffs.fish $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/dmabuffs.fish
	install -m 0644 packaging/dmabuffs.service packaging/fstab.example $(DESTDIR)$(UNITDIR)/

uninstall: ## what install put there
	rm -f $(DESTDIR)$(BINDIR)/dmabuffs $(DESTDIR)$(SBINDIR)/mount.fuse.dmabuffs $(DESTDIR)$(SBINDIR)/mount.dmabuffs
	rm -f $(DESTDIR)$(MANDIR)/man1/dmabuffs.1 $(DESTDIR)$(MANDIR)/man1/dmabuffs-*.1 $(DESTDIR)$(MANDIR)/man8/mount.fuse.dmabuffs.8
	rm -f $(DESTDIR)$(PREFIX)/share/bash-completion/completions/dmabuffs $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_dmabuffs
	rm -f $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/dmabuffs.fish
	rm -f $(DESTDIR)$(UNITDIR)/dmabuffs.service $(DESTDIR)$(UNITDIR)/fstab.example

# Every step of the tests has a time limit and all of them together have one: see scripts/test.
test: ## everything that CI checks, in at most 20 minutes
	scripts/test

unit: ## package tests under the race detector
	GORACE=atexit_sleep_ms=0 $(GO) test -race -count=1 -timeout 240s ./poll/... ./exporter/... ./attach/... ./fs/... ./cmd/...

race: unit

mounted: ## tests against real mounts
	DMABUFFS_NEED_FUSE=1 $(GO) test -count=1 -timeout 360s ./tests/...

single: ## a shorter pass on one processor, where deadlocks of a daemon show
	DMABUFFS_NEED_FUSE=1 GOMAXPROCS=1 $(GO) test -short -count=1 -timeout 180s ./tests/...

lint: ## gofmt, go vet, staticcheck
	@test -z "$$(gofmt -l attach cmd exporter fs poll tests 2>/dev/null | tee /dev/stderr)" || { echo 'run gofmt -w on these' >&2; exit 1; }
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...

FUZZTIME ?= 30s
fuzz: ## every fuzz target in turn, FUZZTIME each
	scripts/fuzz $(FUZZTIME)

SOAK ?= 5m
soak: ## the randomized tests for SOAK
	DMABUFFS_NEED_FUSE=1 DMABUFFS_SOAK=$(SOAK) $(GO) test -count=1 -timeout 0 -v -run 'Soak|Model' ./tests/...

bench: binary ## ratios against the peers
	$(GO) run ./tests/bench -dmabuffs $(BIN) $(BENCHFLAGS)

conformance: binary ## the kernel's behaviours, one by one, as a table
	scripts/conformance

selftests: binary ## the kernel's own selftests under dmabuffs run
	scripts/selftests

programs: binary ## QEMU and GStreamer under dmabuffs run
	scripts/programs $(BIN)

demo: ## set up, build, and stream real frames between processes
	scripts/setup --demo
	$(MAKE) --no-print-directory binary
	$(BIN) demo

clean: ## what was built
	rm -rf bin build packaging/man packaging/completions
