"""What do statements about networks in general say about this one?"""
