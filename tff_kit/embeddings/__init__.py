"""A frozen encoder's embeddings of every clip, computed once and kept on disk. Clients train on them in every round."""
