class Inputs:
    def __init__(self, *a):
        pass

    def kinds(self):
        return []
