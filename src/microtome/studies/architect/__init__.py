"""What is it made of?"""
