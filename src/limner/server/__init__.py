"""HTTP and WebSocket over run folders and models. It knows no training code, and the server itself no torch."""
