def show(rows, console):
    pass
