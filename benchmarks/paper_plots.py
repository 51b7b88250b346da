def require_matplotlib():
    pass


def save(rows, folder):
    return []
