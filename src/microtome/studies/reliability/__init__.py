"""When is it wrong, and does it know?"""
