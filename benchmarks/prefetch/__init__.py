"""What prefetching KV brings and costs, on real engines on this machine."""
