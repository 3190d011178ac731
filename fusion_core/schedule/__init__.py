"""When to grow, decided while a run trains."""
