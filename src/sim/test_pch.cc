// The tests' precompiled header is compiled with this.
