"""alignlab"""
