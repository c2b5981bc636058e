"""The engine model, written once: the emulated engine adds timers and bytes, the simulator adds its heap."""
