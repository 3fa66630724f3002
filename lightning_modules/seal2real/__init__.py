"""Seal2Real: what would a real seal look like here?"""
