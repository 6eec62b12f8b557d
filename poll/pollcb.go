package poll

// Poll answers poll(2) (dma_buf_poll): it is Ready, and arms the directions that
// were asked for in vain, also if nobody goes on to wait. An armed direction
// counts as a reference to the buffer (Hold) until it becomes ready.
func (r *Reservation) Poll(want Events) Events {
	r.mu.Lock()
	r.initLocked()
	ready := r.readyLocked(want)
	for _, p := range []*PollCB{&r.cbExcl, &r.cbShared} {
		p.active |= p.events & want &^ ready
	}
	r.mu.Unlock()
	r.settle()
	return ready
}

// Armed is which directions were polled for in vain and are not ready yet: the
// active masks of cb_excl and cb_shared.
func (r *Reservation) Armed() Events {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cbExcl.active | r.cbShared.active
}

// Hold has get called for each direction that is armed and put when it no
// longer is, with no lock held: the reference to its buffer that an armed
// callback holds in the kernel, so that a buffer polled in vain outlives its
// last descriptor until the fence is signaled. Whoever calls Poll holds one of
// his own. Call Hold once, before the first Poll.
func (r *Reservation) Hold(get, put func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.get, r.put = get, put
}

// settle brings the references held in line with what is armed. No lock is held.
func (r *Reservation) settle() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.get == nil {
		return
	}
	for _, p := range []*PollCB{&r.cbExcl, &r.cbShared} {
		for !p.settling && p.held != (p.active != 0) {
			p.settling = true
			do := r.put
			if p.active != 0 {
				do = r.get
			}
			r.mu.Unlock()
			do()
			r.mu.Lock()
			p.held = !p.held
			p.settling = false
		}
	}
}
