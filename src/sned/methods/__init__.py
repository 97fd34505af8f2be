"""One file a method, named after its paper: a generator that yields ops. The protocol is in `runtime.method`."""
