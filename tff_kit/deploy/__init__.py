"""Real clients: the experiment of the simulation on processes and devices with their own data, over Flower's engine.

Only `engine.py` knows Flower, and nothing here knows TensorFlow Federated.
"""
