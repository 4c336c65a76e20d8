"""How did it get there, and on what ground does it stand?"""
