"""The worked example of docs/adding_a_method.md: which JPEG quality was a picture last saved with?"""
