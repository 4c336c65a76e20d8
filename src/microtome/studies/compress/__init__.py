"""How small can it get?"""
