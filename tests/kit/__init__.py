"""Shared test material: small checkpoints to damage, and readers that share no code with ours."""
