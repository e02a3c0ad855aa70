"""What a frozen encoder makes of every clip, computed once and kept on disk, for clients to train on in every round."""
