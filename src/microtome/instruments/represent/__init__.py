"""What has it learned, and where?"""
