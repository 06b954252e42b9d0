"""HTTP and WebSocket over run folders and models. The server itself loads no torch and no training code; its model
worker loads both: a checkpoint becomes a model by the task of the run that made it.
"""
