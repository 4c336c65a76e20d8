"""How is learning done?"""
