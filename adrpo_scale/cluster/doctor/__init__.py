"""What an issue form asks for: this machine as a run would find it, in half a minute."""
