"""Who can break it?"""
