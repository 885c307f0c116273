"""Checkpoint → folders that diffusers and peft load, tensor by tensor, verified and described."""
