"""Planning of KV prefetch from host to device. Not built yet: this release orders eviction only."""
