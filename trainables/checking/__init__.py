"""Does changing the loader change the data?"""
