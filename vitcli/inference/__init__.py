"""images → predictions, on the engine that suits the machine and the work. Imports nothing on its own."""
