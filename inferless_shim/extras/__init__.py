"""What needs a third-party package. `cli` and `loader` alone import it; packages come when an app needs them."""
