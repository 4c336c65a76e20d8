"""How sure may one be of its answers?"""
