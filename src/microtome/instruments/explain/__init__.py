"""Why this answer?"""
