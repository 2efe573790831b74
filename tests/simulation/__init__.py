"""The deterministic simulator: the very machines of zfarm.core under a virtual clock and a faulty world."""
