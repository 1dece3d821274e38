"""Frozen networks that guide training, with published weights from the user's disk."""
