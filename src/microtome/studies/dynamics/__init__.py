"""How does learning go?"""
